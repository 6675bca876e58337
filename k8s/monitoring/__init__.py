"""What Prometheus and Grafana need to show a grid: dashboards as code, rules, and where to scrape."""

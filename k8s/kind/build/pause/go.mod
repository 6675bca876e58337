module experiment-grid/pause

go 1.26.0

"""The figures of a report, as bytes: pure functions of values. Whoever imports a module of it loads Matplotlib."""

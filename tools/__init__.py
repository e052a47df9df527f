"""Programs that set a checkout up; they run before anything is installed, so they import nothing but Python."""

// The test brings its own settings.

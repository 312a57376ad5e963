"""Light: source, fibre, Faraday-Michelson interferometer, detectors, and Eve."""

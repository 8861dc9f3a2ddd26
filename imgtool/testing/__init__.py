"""For tests, ours and yours: temporary images, domains, strategies and a pytest plugin."""

"""What stands above the models: calibration and the hybrid of network and trees."""

"""What users do with bundles, each as a function: typed results, and nothing is printed."""

"""The demo: a throwaway appliance under one directory, and the whole path played on it. Nothing here is secret."""

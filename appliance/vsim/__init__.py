"""A virtual SIM, the other side of the appliance: it imports nothing of it and is written against the specifications.

`VirtualSim` (module `card`) answers APDUs in process, over vpcd in a real PC/SC reader, and from the command line.
"""

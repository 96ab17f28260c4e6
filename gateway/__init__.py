"""The face of Chorus: HTTP routes, admission, relay, accounting, telemetry, the supervisor and the command
line."""

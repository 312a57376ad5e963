"""Where alarms go: webhook, syslog, e-mail; each in a thread of its own, so that a receiver's trouble stays its own."""

"""Repeating a report: times as cron writes them, a systemd timer or a crontab line, and which times were missed."""

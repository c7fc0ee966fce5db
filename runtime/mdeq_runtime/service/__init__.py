"""What a run needs when nobody sits in front of it: systemd's protocol, reloading, logs.

systemd <- notify <- heartbeat <- pipeline        SIGHUP -> reload -> session
"""

"""The message bus: one small interface, over MQTT or in memory."""

"""From a suite and its findings to what people read. Pure: no clock, no file, no network, nothing printed."""

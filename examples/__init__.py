"""Small applications that show what aiohttp-reduce does. Each runs by itself: `python -m examples.basic`."""

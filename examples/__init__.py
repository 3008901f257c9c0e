"""Small programs that show what aiohttp-reduce does, with one point each: `python -m examples.basic`."""

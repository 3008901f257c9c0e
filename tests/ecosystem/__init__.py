"""What is used together with aiohttp, behind and beside us: applications behave as without us, and coalesce.

The packages are those of the dependency group `ecosystem`; where one is missing, its tests say so and are skipped.
"""

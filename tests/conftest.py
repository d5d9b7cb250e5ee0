"""Settings that every test shares."""

from hypothesis import settings

# examples are judged by what they show, not by how long a loaded machine takes
settings.register_profile("project", deadline=None)
settings.load_profile("project")

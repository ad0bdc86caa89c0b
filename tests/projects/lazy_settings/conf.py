import os

hosts = os.environ.get("ALLOWED_HOSTS_OF_NOBODY").split(" ")

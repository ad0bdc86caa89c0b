"""A roadmap generator: several agents write a course of study, and every step of it is logged.

Run it:  cloche up -A roadmap.workflow &
         uvicorn --factory roadmap.api:create
Use it:  curl -s localhost:8002/roadmaps -H 'content-type: application/json' \
              -d '{"topic": "Gardening", "goals": ["Soil", "Seeds under glass"], "weeks": 2}'
         curl -s localhost:8002/roadmaps/RUN
"""

from tasks import app


@app.task
def write(line):
    return "the project's own: " + line

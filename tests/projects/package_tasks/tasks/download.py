from tasks import app


@app.task(bind=True)
def film(self, url):
    return [url, self.request.delivery_info["routing_key"], self.request.timelimit]

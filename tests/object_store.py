"""An object store of its own on this machine, which refuses some requests: moto's server behind a fault."""

import contextlib
import os
import random
import threading

BUCKET = "scans"


class Faulty:
    """A WSGI application of which a share of requests fails, as those of busy stores do; counts both."""

    def __init__(self, app, share: float, seed: int = 0):
        self.app, self.share, self.chance = app, share, random.Random(seed)
        self.requests = self.failed = 0
        self.lock = threading.Lock()

    def __call__(self, environ, start_response):
        with self.lock:
            self.requests += 1
            fails = self.chance.random() < self.share
            self.failed += fails
        if fails:
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]
        return self.app(environ, start_response)


@contextlib.contextmanager
def object_store(share: float = 0.0):
    """The faulty application, served on loopback and named in the environment, with an empty bucket in it."""
    import boto3
    import fsspec
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app = Faulty(DomainDispatcherApplication(create_backend_app), 0.0)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    told = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    try:
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        app.share = share
        yield app
    finally:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        server.shutdown()
        thread.join()

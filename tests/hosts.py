"""Several hosts in one process, a thread each: who they are, and what they gather, is replaced."""

import pickle
import threading

import jax

from selfexplain_jax.training import mesh


def on_hosts(monkeypatch, count, work):
    """Runs work(host) on so many hosts at once; returns what each of them returned.

    Whatever one raises is raised here, and the others are let go.
    """
    here, meeting = threading.local(), threading.Barrier(count, timeout=300)
    told, results, errors = [b""] * count, [None] * count, []

    def gather(value, *, patiently=False):
        told[here.host] = pickle.dumps(value)
        meeting.wait()
        found = [pickle.loads(content) for content in told]
        meeting.wait()
        return found

    def of_host(host):
        here.host = host
        try:
            results[host] = work(host)
        except BaseException as error:
            errors.append(error)
            meeting.abort()

    with monkeypatch.context() as patch:
        patch.setattr(mesh, "gather", gather)
        patch.setattr(jax, "process_count", lambda: count)
        patch.setattr(jax, "process_index", lambda: getattr(here, "host", 0))
        threads = [threading.Thread(target=of_host, args=(host,)) for host in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return results

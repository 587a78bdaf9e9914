"""Speaks with an MCP server over HTTP, for whoever speaks over standard input and output.

Runs in the sandbox of the server, with the same rights: `python3 -c THIS PORT PATH PROGRAM [ARGUMENT...]`. It starts the program, which
listens at PORT of its own machine, and passes on what comes in lines: Streamable HTTP of 2025-03-26 to 2025-11-25.
"""

import http.client
import json
import os
import subprocess
import sys
import threading
import time

port, path, program = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
said = threading.Lock()

# What the server prints is for people.
server = subprocess.Popen(program, stdin=subprocess.DEVNULL, stdout=2)


def end_with_server():
    code = server.wait()
    os._exit(code if code >= 0 else 128 - code)


def say(text):
    # Outside of texts a line's end is a space, and inside of one it cannot be.
    line = text.replace("\r", " ").replace("\n", " ") + "\n"
    with said:
        sys.stdout.buffer.write(line.encode())
        sys.stdout.buffer.flush()


def connect():
    """A connection to the server, which may not listen yet."""
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        try:
            connection.connect()
            return connection
        except ConnectionRefusedError:
            time.sleep(0.05)


def events(response):
    """What a stream of events carries."""
    data = []
    for line in response:
        line = line.decode().rstrip("\r\n")
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line:
            # Some begin with an event that says nothing, so that it can be gone on from.
            if "".join(data).strip():
                yield "\n".join(data)
            data = []


def is_stream(response):
    return response.headers.get("Content-Type", "").startswith("text/event-stream")


def listen():
    """Hears what belongs to no request, if the server has a stream for it."""
    while True:
        connection = connect()
        try:
            connection.request("GET", path, headers={**headers, "Accept": "text/event-stream"})
            response = connection.getresponse()
            if response.status != 200 or not is_stream(response):
                return
            for text in events(response):
                say(text)
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(1)


def take(connection, message):
    """Passes the answer to a message on. What is no answer becomes one, so that nobody waits in vain."""
    wanted = message.get("id") if "method" in message else None
    why = "the connection to it broke"
    try:
        response = connection.getresponse()
        if response.status < 300 and is_stream(response):
            for text in events(response):
                say(text)
                answer = json.loads(text)
                if isinstance(answer, dict) and "method" not in answer and answer.get("id") == wanted:
                    learn(message, answer, response)
                    wanted = None
        else:
            text = response.read().decode()
            why = f"it answered with the status {response.status}"
            if wanted is not None and text.strip():
                answer = json.loads(text)
                if isinstance(answer, dict) and answer.get("id") == wanted:
                    learn(message, answer, response)
                    say(text)
                    wanted = None
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = f"{why} ({type(error).__name__})"
    finally:
        connection.close()
    if wanted is not None:
        error = {"code": -32000, "message": f"the server gave no answer: {why}"}
        say(json.dumps({"jsonrpc": "2.0", "id": wanted, "error": error}))


def learn(message, answer, response):
    """Keeps what the server wants to see again in every request."""
    if message.get("method") == "initialize" and "result" in answer:
        if session := response.headers.get("Mcp-Session-Id"):
            headers["Mcp-Session-Id"] = session
        headers["MCP-Protocol-Version"] = str(answer["result"].get("protocolVersion", ""))


threading.Thread(target=end_with_server, daemon=True).start()
for line in sys.stdin.buffer:
    message = json.loads(line)
    connection = connect()
    try:
        connection.request("POST", path, body=line.strip(), headers=headers)
    except OSError:
        pass  # Its answer says so.
    if "method" in message and "id" in message and message["method"] != "initialize":
        # Calls take what they take; all else has been taken before the next message goes.
        threading.Thread(target=take, args=(connection, message), daemon=True).start()
        continue
    take(connection, message)
    if message.get("method") == "notifications/initialized":
        threading.Thread(target=listen, daemon=True).start()
server.terminate()
server.wait()

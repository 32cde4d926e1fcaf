# Attaching and detaching a thousand times leaves no file, no memory, no device and no socket behind. How long an attachment
# takes is printed.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

make_image template.qcow2 -c
background serve thinorigin serve --admin "unix:$work/admin.sock"
becomes_true grep -q ^ready serve.log
read -r server _ <serve.pid

cat >cycles.py <<'PYTHON'
import http.client, json, socket, sys, time

path, image, count = sys.argv[1], sys.argv[2], int(sys.argv[3])


class Control(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)


def ask(method, resource, body=None):
    control.request(method, resource, body and json.dumps(body), {"content-type": "application/json"})
    answer = control.getresponse()
    text = answer.read()
    assert answer.status == 200, text
    return json.loads(text)


control = Control("thinorigin")
took = {"attach": [], "detach": []}
for number in range(count):
    began = time.monotonic()
    attached = ask("POST", "/v1/attachments", {"location": image, "key": f"cycle {number}"})
    took["attach"].append(time.monotonic() - began)
    with open(attached["device"], "rb") as device:
        device.seek(1024)
        assert len(device.read(4096)) == 4096
    began = time.monotonic()
    assert ask("DELETE", f"/v1/attachments?key=cycle%20{number}")["device"] == attached["device"]
    took["detach"].append(time.monotonic() - began)
for what, times in took.items():
    times.sort()
    print(f"{what}: p50 {times[len(times) // 2] * 1000:.1f} ms, p99 {times[len(times) * 99 // 100] * 1000:.1f} ms")
PYTHON
cost() { # open files, and KiB of memory that is no file's
  local files=(/proc/"$server"/fd/*)
  echo "${#files[@]} $(sed -n 's/^RssAnon:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$server/status")"
}
sockets() { wc -l </proc/net/unix; }

# What is taken once and kept is taken first.
python3 cycles.py "$work/admin.sock" "$work/template.qcow2" 50
read -r files memory < <(cost)
unix=$(sockets)
python3 cycles.py "$work/admin.sock" "$work/template.qcow2" 1000 | tee latencies
read -r files_after memory_after < <(cost)
same "open files" "$files" "$files_after"
same "unix sockets" "$unix" "$(sockets)"
(( memory_after < memory + 4096 )) || fail "memory grew from $memory to $memory_after KiB"
same "connected devices" '' "$(connected)"
same "records" '' "$(find "$work" -name '*.json' -newer cycles.py)"
stop serve.pid

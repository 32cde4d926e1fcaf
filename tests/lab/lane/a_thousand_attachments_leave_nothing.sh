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
    print(f"FACT {count} times {what}: p50 {times[len(times) // 2] * 1000:.1f} ms, p99 {times[len(times) * 99 // 100] * 1000:.1f} ms")
PYTHON
open_files() { local files=(/proc/"$server"/fd/*); echo ${#files[@]}; }
memory() { sed -n 's/^RssAnon:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$server/status"; } # KiB that are no file's
sockets() { wc -l </proc/net/unix; }
# The last sockets are closed a moment after the device is gone.
at_most() { (( $("$1") <= $2 )); } # FIGURE NUMBER

# What is taken once and kept is taken first.
python3 cycles.py "$work/admin.sock" "$work/template.qcow2" 50
sleep 1
open=$(open_files) memory=$(memory) unix=$(sockets)
python3 cycles.py "$work/admin.sock" "$work/template.qcow2" 1000
becomes_true at_most open_files "$open"
becomes_true at_most sockets "$unix"
becomes_true at_most memory $(( memory + 4096 ))
same "connected devices" '' "$(connected)"
same "records" '' "$(find "$work" -name '*.json' -newer cycles.py)"
stop serve.pid

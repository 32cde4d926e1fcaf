# Restarted under a service manager that keeps its sockets, a server leaves the kernel's devices to the next one as they
# are: nobody reading sees an error, and the kernel sees nothing at all. One that is killed leaves sockets that nobody can go
# on with, also where the manager has them still: the next server brings new ones.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

make_image template.qcow2 -c
qemu-img convert -O raw template.qcow2 guest.raw
wanted=$(digest <(head -c 16M guest.raw))
serve_over_http "$work"

# Reads the first 16 MiB of the device again and again, past the page cache; one line for each round, with the milliseconds it took.
cat >work-load <<'LOAD'
#!/bin/bash
set -eu
for (( round = 0; ; round++ )); do
  began=${EPOCHREALTIME/[.,]/}
  sum=$(dd if="$1" bs=256K count=64 iflag=direct status=none | sha256sum)
  [[ ${sum%% *} == "$2" ]] || { echo "WRONG read in round $round"; exit 1; }
  echo "$round $(( (${EPOCHREALTIME/[.,]/} - began) / 1000 ))"
done
LOAD
starts() { grep -c '^starting' manager.log; }
started() { (( $(starts) > $1 )) && [[ $(tail -n 1 manager.log) != starting* ]]; } # COUNT: it was again since, and is ready
noticed() { dmesg | grep -c 'block nbd' || true; } # what the kernel has to say about its devices

for manager in service-manager 'service-manager --forgets-nothing'; do
  # shellcheck disable=SC2086 # an option of its own
  background manager "$lab/"$manager thinorigin serve --admin unix:/run/thinorigin/admin.sock --cache "$work/cache"
  becomes_true grep -q ^ready manager.log
  device=$(thinorigin attach "$HTTP_URL/template.qcow2")
  : >load.log
  background load bash work-load "$device" "$wanted"
  goes_on
  echo "FACT $manager: longest round, undisturbed: $(longest 0) ms" >>stalls
  read -r pid _ <manager.pid

  kernel=$(noticed) from=$(rounds)
  for _ in 1 2 3; do
    before=$(starts)
    kill -USR1 "$pid"
    becomes_true started "$before"
    goes_on
  done
  grep -q '^starting with 2' manager.log
  same "what the kernel has noticed of three restarts" "$kernel" "$(noticed)"
  echo "FACT $manager: longest round with three restarts of 1 s: $(longest "$from") ms" >>stalls

  before=$(starts) from=$(rounds)
  pkill -KILL -x thinorigin
  becomes_true started "$before"
  goes_on
  (( $(noticed) > kernel )) || fail "the kernel went on with the sockets of a server that died"
  echo "FACT $manager: longest round with a kill: $(longest "$from") ms" >>stalls
  # After that it is as before.
  kernel=$(noticed) before=$(starts)
  kill -USR1 "$pid"
  becomes_true started "$before"
  goes_on
  same "what the kernel has noticed of another restart" "$kernel" "$(noticed)"

  ! grep WRONG load.log || fail "wrong bytes"
  stop load.pid
  becomes_true thinorigin detach "$device"
  stop manager.pid
  becomes_true eval '! pgrep -x thinorigin'
  same "connected devices" '' "$(connected)"
done
cat stalls
becomes_true nothing_is_left

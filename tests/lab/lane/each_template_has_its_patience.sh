# How long reads wait for an image server that is away is said for each template: one of little patience ends in an error
# soon, one of much goes on when the server is back. The kernel's timer is always the longer.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

make_image template.qcow2 -c
wanted=$(guest_digest template.qcow2)
cp template.qcow2 other.qcow2
serve_over_http "$work"
smctl sr create --name sr "$SCRATCH"
smctl vdi introduce sr "$HTTP_URL/template.qcow2" --name hasty --patience 3
smctl vdi introduce sr "$HTTP_URL/other.qcow2" --name patient --patience 120
for patience in 0 3601; do
  ! smctl vdi introduce sr "$HTTP_URL/other.qcow2" --patience $patience 2>said || fail "a patience of $patience s is taken"
  grep -q '1..=3600' said
done
[[ $(smctl vdi info sr hasty --json) == *'"patience": 3,'* ]]
[[ $(smctl vdi info sr patient) == *'patience  120'* ]]
for name in hasty patient; do smctl vdi clone sr $name --name "$name-clone"; done
hasty=$(smctl vdi attach sr hasty-clone --no-cache)
patient=$(smctl vdi attach sr patient-clone)

# Milliseconds after which the kernel gives a socket up: more than any read takes.
timer() { # PATIENCE-OF-ITS-TEMPLATE IMAGE
  local device
  device=$(thinorigin attached | awk -v image="$2" '$NF ~ image "$" { print $1 }')
  same "timer of $device, whose reads take up to $1 s" $(( ($1 + 5) * 1000 )) "$(<"/sys/block/${device##*/}/queue/io_timeout")"
}
timer 25 template.qcow2 # what is less than usual needs no shorter timer
timer 120 other.qcow2

sleep 3 # what opening an image brought along is kept for two seconds
"$lab/http" stop "$work/http"
echo 3 >/proc/sys/vm/drop_caches
background patient dd if="$patient" of=patient.copy bs=1M iflag=direct
began=$SECONDS
! timeout 60 dd if="$hasty" of=/dev/null bs=1M skip=40 count=1 iflag=direct 2>hasty.log || fail "it was read without a server"
grep -q 'Input/output error' hasty.log
echo "FACT with a patience of 3 s, EIO after $(( SECONDS - began )) s"
# Longer than a read usually waits, and than the kernel's usual timer.
sleep $(( 33 - (SECONDS - began) ))
running patient.pid || fail "it did not wait: $(<patient.log)"
# What hangs on what is told to who looks, and to who does not.
thinorigin attached | grep -E "^ */dev/nbd.* \(oldest 3[0-9] s\).* $HTTP_URL/other.qcow2"
[[ $(thinorigin attached --json) == *'"seconds": 3'* ]]
becomes_true grep -E "/dev/nbd[0-9]+: [0-9]+ reads wait, the oldest for [34][0-9] s at 0x.*, for $HTTP_URL/other.qcow2" /run/thinorigin/server.log
"$lab/http" start "$work/http" --root "$work"
until ! running patient.pid; do
  (( SECONDS - began < 100 )) || fail "it does not go on"
  sleep 0.2
done
same "bytes that were waited for" "$wanted" "$(digest patient.copy)"

for name in hasty patient; do smctl vdi detach sr "$name-clone"; done
smctl sr destroy sr --force
becomes_true nothing_is_left

# While the server of a template does not answer, the pool does not grow, for every disk would wait for that server: the
# template is named, and other disks are read and written as before. When it answers again, the pool grows.
# It mostly waits.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

truncate -s 256M template.raw
head -c 256M /dev/urandom | dd of=template.raw bs=1M conv=notrunc iflag=fullblock status=none
serve_over_http "$work"
json() { # FIELD COMMAND...
  local field=$1
  shift
  "$@" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$field"
}
pool_size() { json pool_size smctl sr info lane; }
nginx() { # SIGNAL: to all of it
  local pids
  read -r main _ <http/nginx.pid
  pids=$(pgrep -P "$main"; echo "$main")
  # shellcheck disable=SC2086 # ids
  kill "-$1" $pids
}

smctl sr create --name lane --pool-size 256M "$SCRATCH"
smctl vdi introduce lane "$HTTP_URL/template.raw" --name debian --patience 120
smctl vdi clone lane debian --name machine
smctl vdi create lane --name other --size 512M
machine=$(smctl vdi attach lane machine --no-cache)
other=$(smctl vdi attach lane other)
dd if="$machine" of=/dev/null bs=1M count=1 iflag=direct status=none
smctl sr grow lane --automatically no
head -c 220M /dev/urandom | dd of="$other" bs=1M oflag=direct iflag=fullblock status=none
before=$(pool_size)
smctl sr grow lane --dry-run >steps
grep 'grow the thin pool' steps

nginx STOP
background reader dd if="$machine" of=/dev/null bs=1M skip=100 count=20 iflag=direct
sleep 1
running reader.pid || fail "the reader did not wait: $(<reader.log)"
background writer bash -c "for (( i = 0; ; i++ )); do timeout 2 dd if=/dev/urandom of='$other' bs=64k seek=\$(( i % 1000 )) count=1 oflag=direct conv=notrunc status=none || { echo STOOD; exit 1; }; echo \$i; sleep 0.05; done"
began=$SECONDS
refuses 3 smctl sr grow lane
(( SECONDS - began < 8 )) || fail "it took $(( SECONDS - began )) s to see that a template does not answer"
grep "template 'debian'" said
smctl sr grow lane --automatically yes 2>said
grep "warning: .*template 'debian'" said
smctl vdi create lane --name more --size 1M 2>said
grep "warning: .*template 'debian'" said
background watch smctl sr watch --interval 1
becomes_true grep "template 'debian'" watch.log
same "the pool's size" "$before" "$(pool_size)"
running reader.pid || fail "the reader came to an end while nobody answered, and the test tells nothing: $(<reader.log)"
running writer.pid || fail "the other disk stood still: $(tail -n 1 writer.log)"
(( $(wc -l <writer.log) > 20 )) || fail "the other disk was slow: $(wc -l <writer.log) writes"

nginx CONT
tries=60
until (( $(pool_size) > before )); do
  (( tries-- )) || fail "the pool does not grow: $(<watch.log)"
  sleep 1
done
running writer.pid || fail "the other disk stood still: $(tail -n 1 writer.log)"
stop writer.pid
stop watch.pid
echo "FACT $(wc -l <writer.log) writes to another disk meanwhile, each within 2 s"
while running reader.pid; do sleep 0.2; done
dd if="$machine" of=read bs=1M count=256 iflag=direct status=none
same "bytes of the template" "$(digest template.raw)" "$(digest read)"
smctl vdi detach lane machine
smctl vdi detach lane other
smctl sr destroy lane --force
becomes_true nothing_is_left

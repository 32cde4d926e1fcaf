# The server of templates is away: an attach fails and names the template, and leaves nothing; disks that are attached are
# read and written where they have blocks of their own. One that is killed while a server keeps it waiting leaves nothing
# either, also if that server answers only later.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

head -c 8M /dev/urandom >template.raw
cp template.raw other.raw
serve_over_http "$work"
smctl sr create --name lane "$SCRATCH"
smctl vdi introduce lane "$HTTP_URL/template.raw" --name template
smctl vdi introduce lane "$HTTP_URL/other.raw" --name debian
smctl vdi clone lane template --name machine
smctl vdi clone lane debian --name other
machine=$(smctl vdi attach lane machine --no-cache)
head -c 3M /dev/urandom >noise
dd if=noise of="$machine" bs=64k seek=16 oflag=direct conv=notrunc status=none
nginx() { # SIGNAL: to all of it
  local pids
  read -r main _ <http/nginx.pid
  pids=$(pgrep -P "$main"; echo "$main")
  # shellcheck disable=SC2086 # ids
  kill "-$1" $pids
}
devices() { dmsetup ls | sort; connected; }
before=$(devices)
own_blocks_work() {
  echo 3 >/proc/sys/vm/drop_caches
  timeout 5 dd if=noise of="$machine" bs=64k seek=16 oflag=direct conv=notrunc status=none
  timeout 5 dd if="$machine" of=back bs=64k skip=16 count=48 iflag=direct status=none
  cmp noise back
  # A whole block needs nothing of the template either.
  timeout 5 dd if=noise of="$machine" bs=64k seek=100 count=1 oflag=direct conv=notrunc status=none
}

# It does not answer.
nginx STOP
smctl vdi attach lane other >/dev/null 2>said &
attaching=$!
own_blocks_work
sleep 1
kill -KILL $attaching || fail "an attach ended while the server said nothing: $(<said)"
wait $attaching || true
smctl sr recover lane
same "devices after a kill" "$before" "$(devices)"
nginx CONT
sleep 3
same "devices when the server answers" "$before" "$(devices)"

# It is not there.
"$lab/http" stop "$work/http"
began=$SECONDS
refuses 1 smctl vdi attach lane other
echo "FACT an attach without its template's server ends after $(( SECONDS - began )) s: $said"
[[ $said == *"template 'debian'"* ]] || fail "$said"
same "devices after an attach that failed" "$before" "$(devices)"
same "whether it is attached" false "$(smctl vdi info lane other --json | sed -n 's/.*"attached": \([a-z]*\).*/\1/p')"
own_blocks_work

"$lab/http" start "$work/http" --root "$work"
other=$(smctl vdi attach lane other)
same "bytes when the server is back" "$(digest other.raw)" "$(digest "$other")"
for vdi in machine other; do smctl vdi detach lane $vdi; done
smctl sr destroy lane --force
becomes_true nothing_is_left

# A template that is all in the cache is copied into the repository while a machine reads and writes its disk: the machine
# does not notice, the NBD device is let go, and nobody needs a server any more, after a new attach neither. The way back
# is open while the image is, and when the copy is lost.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

truncate -s 64M template.raw
for place in 0 20 45; do
  head -c 8M /dev/urandom | dd of=template.raw bs=1M seek=$place conv=notrunc iflag=fullblock status=none
done
qemu-img convert -q -c -O qcow2 template.raw template.qcow2
wanted=$(digest template.raw)
serve_over_http "$work"
smctl sr create --name lane "$SCRATCH"
smctl vdi introduce lane "$HTTP_URL/template.qcow2" --name template
for vdi in web still; do smctl vdi clone lane template --name $vdi; done
web=$(smctl vdi attach lane web)
still=$(smctl vdi attach lane still)
copies() { lvs --noheadings -o name lane | grep -c -e -local- || true; }
ready() { smctl vdi info lane template | sed -n 's/^ *local_copy  //p'; }

# Not all of it is in the cache: how much, and what to do.
dd if="$still" of=/dev/null bs=1M count=4 status=none
refuses 3 smctl vdi localise lane template
[[ $said == *' % of template '*'thinorigin warm'* ]] || fail "$said"
same "copies" 0 "$(copies)"
same "bytes" "$wanted" "$(digest "$still")"

# No room: how much is free, and how much is needed.
free=$(vgs --noheadings --nosuffix --units m -o vg_free lane)
lvcreate -q -y -W n -L "$(( ${free%.*} - 8 ))m" -n filler lane
refuses 3 smctl vdi localise lane template
[[ $said == *free*needs* ]] || fail "$said"
lvremove -q -y lane/filler

cp template.raw bytes
background guest "$lab/guest" "$web" "$work/bytes"
rounds() { grep -c '^[0-9]' guest.log || true; }
more_than() { (( $(rounds) > $1 )); }
goes_on() {
  local from
  from=$(rounds)
  running guest.pid || fail "the guest ended: $(tail -n 1 guest.log)"
  becomes_true more_than "$(( from + 1 ))"
}
goes_on

# Killed at any moment, and recovered: there is a whole copy or none, and the guest goes on.
kills=0
for moment in 0.3 0.6 0.9 1.3; do
  smctl vdi localise lane template &
  localise=$!
  sleep $moment
  if kill -KILL $localise 2>/dev/null; then (( kills += 1 )); fi
  wait $localise || true
  smctl sr recover lane
  goes_on
  case $(ready) in
    true) same "copies" 1 "$(copies)"
          same "connected devices" '' "$(connected)"
          smctl vdi localise --undo lane template ;;
    false) ;;
    *) fail "a template says nothing of its copy" ;;
  esac
  same "copies" 0 "$(copies)"
  same "connected devices" 1 "$(connected | wc -l)"
  goes_on
done
(( kills )) || fail "nothing was killed"

# To the end, back, and to the end again; then no server, and no image.
smctl vdi localise lane template
goes_on
smctl vdi localise --undo lane template
same "connected devices" 1 "$(connected | wc -l)"
same "copies" 0 "$(copies)"
goes_on
smctl vdi localise lane template
same "ready" true "$(ready)"
same "connected devices" '' "$(connected)"
becomes_true eval '! pgrep -x thinorigin'
rm template.qcow2
"$lab/http" stop "$work/http"
rm -rf /var/cache/thinorigin/*
goes_on
echo 3 >/proc/sys/vm/drop_caches
same "bytes without a server" "$wanted" "$(dd if="$still" bs=1M iflag=direct status=none | sha256sum | cut -d ' ' -f 1)"
smctl vdi localise lane template

# The way back is closed while the image is away, and nothing changes.
refuses 1 smctl vdi localise --undo lane template
same "ready" true "$(ready)"
goes_on
stop guest.pid
grep '^right' guest.log || fail "the guest: $(tail -n 1 guest.log)"
echo "FACT guest: $(tail -n 1 guest.log)"

# As after a reboot.
for vdi in web still; do smctl vdi detach lane $vdi; done
smctl sr detach lane
smctl sr attach lane
web=$(smctl vdi attach lane web)
still=$(smctl vdi attach lane still)
same "bytes of the machine" "$(digest bytes)" "$(digest "$web")"
same "bytes of the other clone" "$wanted" "$(digest "$still")"
same "servers" 0 "$(pgrep -c -x thinorigin || true)"
template=$(smctl vdi attach lane template)
same "bytes of the template" "$wanted" "$(digest "$template")"
smctl vdi detach lane template

# The copy is lost: an attach says so, and the way back needs nothing of it.
for vdi in web still; do smctl vdi detach lane $vdi; done
lvremove -q -y "lane/$(lvs --noheadings -o name lane | grep -e -local- | tr -d ' ')"
refuses 1 smctl vdi attach lane still
[[ $said == *'localise --undo'* ]] || fail "$said"
refuses 3 smctl vdi forget lane template
smctl vdi localise --undo lane template
same "ready" false "$(ready)"
for vdi in web still; do smctl vdi destroy lane $vdi; done
smctl vdi forget lane template

# A template that is forgotten takes its copy with it; one that nobody uses can be copied too.
smctl vdi introduce lane "$work/template.raw" --name file
smctl vdi localise lane file
same "copies" 1 "$(copies)"
same "connected devices" '' "$(connected)"
smctl vdi clone lane file --name last
rm template.raw
same "bytes" "$wanted" "$(digest "$(smctl vdi attach lane last)")"
smctl vdi detach lane last
smctl vdi destroy lane last
smctl vdi forget lane file
same "copies" 0 "$(copies)"
smctl sr destroy lane
becomes_true nothing_is_left

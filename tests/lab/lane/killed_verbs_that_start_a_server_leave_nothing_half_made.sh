# smctl is killed at every point while it attaches a disk and has to start the server of the templates for that: after recovery all is
# as before or as after, nothing is left over, and a server that nobody needs ends.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

sweep servers

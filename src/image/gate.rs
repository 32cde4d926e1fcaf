//! Which files an image may name.
//!
//! An image is hostile input, and backing files, extents and parents are names inside it. By default such a name
//! may only reach the image's own directory on the same server; the operator widens that by location prefixes
//! (`--allow-reference`). Everything else is refused by name. The rule holds whatever the image format, so it is
//! written once, here.

use crate::error::{Error, Result};
use backends::Location;

/// What references are allowed besides the image's own directory.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    /// Location prefixes that the operator allows.
    pub allow: Vec<String>,
}

impl Gate {
    /// Where `name`, which stands in the image at `base`, leads, or a refusal that names both. A local sibling keeps
    /// its directory in mind and is opened without following a symbolic link out of it.
    pub(crate) fn admit(&self, base: &Location, name: &str) -> Result<Location> {
        // Behind `file:` is a name, whatever stands in front of a colon in it.
        let plain = name.strip_prefix("file:").filter(|rest| !rest.starts_with('/') && !rest.is_empty());
        let relative = plain.map_or_else(|| name.to_owned(), |rest| format!("./{rest}"));
        if let Some(location) = base.sibling(&relative) {
            return Ok(location);
        }
        if let Ok(location) = name.parse::<Location>()
            && self.allow.iter().any(|prefix| location.is_under(prefix))
        {
            return Ok(location);
        }
        Err(Error::failed(format!(
            "{base}: refused to open {name:?}, which the image names: only files in the image's own directory are \
             opened (--allow-reference PREFIX widens that)"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::Gate;
    use backends::Location;

    fn admit(allow: &[&str], base: &str, name: &str) -> Result<String, String> {
        let gate = Gate { allow: allow.iter().map(|prefix| (*prefix).to_owned()).collect() };
        let base: Location = base.parse().unwrap();
        gate.admit(&base, name).map(|location| location.to_string()).map_err(|error| error.message)
    }

    #[test]
    fn the_image_s_own_directory_is_open() {
        assert_eq!(admit(&[], "/srv/a.qcow2", "base.raw"), Ok("/srv/base.raw".into()));
        assert_eq!(admit(&[], "/srv/a.qcow2", "file:base.raw"), Ok("/srv/base.raw".into()));
        assert_eq!(admit(&[], "/srv/a.qcow2", "./a:b.raw"), Ok("/srv/a:b.raw".into()));
        assert_eq!(admit(&[], "/srv/a.qcow2", "file:a:b.raw"), Ok("/srv/a:b.raw".into()));
        assert_eq!(admit(&[], "http://host/t/a.qcow2", "b.qcow2"), Ok("http://host/t/b.qcow2".into()));
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        let names = [
            "/etc/passwd",
            "../../etc/hostname",
            "sub/../../x",
            "http://169.254.169.254/latest/meta-data/",
            "nbd://127.0.0.1:1/x",
            "ssh://root@127.0.0.1/etc/shadow",
            "rbd:pool/img",
            "/dev/fdset/1",
            "/proc/self/environ",
            "file:///etc/passwd",
            "file:/etc/passwd",
            "file:../x",
            "file:",
            "file:http://169.254.169.254/",
            "a:b.raw",
            "json:{\"driver\":\"nbd\",\"host\":\"127.0.0.1\",\"port\":\"1\"}",
            "nvme://0000:00:00.0/1",
            "fat:/etc",
            "blkdebug::/etc/passwd",
            "\\\\.\\PhysicalDrive0",
            "base\0.raw",
            "base\n.raw",
            "",
            ".",
        ];
        for base in ["/srv/a.qcow2", "http://host/t/a.qcow2"] {
            for name in names {
                let message = admit(&[], base, name).expect_err(name);
                assert!(message.contains("refused to open"), "{name}: {message}");
            }
        }
    }

    #[test]
    fn the_operator_widens_it_by_prefix() {
        assert_eq!(admit(&["/srv/base"], "/srv/vm/a.qcow2", "/srv/base/b"), Ok("/srv/base/b".into()));
        assert!(admit(&["/srv/base"], "/srv/vm/a.qcow2", "/srv/base2/b").is_err());
        assert!(admit(&["/srv/base"], "/srv/vm/a.qcow2", "/srv/base/../vm/b").is_err());
        assert!(admit(&["http://h/t/"], "http://host/a.qcow2", "http://h/t/b").is_ok());
        assert!(admit(&["http://h/t/"], "http://host/a.qcow2", "http://h.evil/t/b").is_err());
    }
}

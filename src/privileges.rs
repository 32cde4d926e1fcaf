//! Becoming somebody else, and giving files to others.

use crate::error::{Error, Result};
use std::io;

/// A user, or a group, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) user: Option<u32>,
    pub(crate) group: Option<u32>,
}

impl Owner {
    /// `USER`, `USER:GROUP` or `:GROUP`, each a number or a name of this machine's own (`/etc/passwd`, `/etc/group`). With
    /// `USER` alone, the user's own group.
    pub(crate) fn parse(text: &str) -> Result<Owner> {
        let read = |path: &str| {
            std::fs::read_to_string(path).map_err(|error| Error::io("cannot be read", path, &error))
        };
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        let found = resolve(user, group, &read("/etc/passwd")?, &read("/etc/group")?);
        found.ok_or_else(|| Error::usage(format!("{text:?}: no such user or group on this machine")))
    }
}

fn resolve(user: &str, group: &str, passwd: &str, groups: &str) -> Option<Owner> {
    // name:password:number:…, and in passwd the number of the group after that.
    let line = |text: &str, name: &str| {
        let lines = text.lines().map(|line| line.split(':').map(str::to_owned).collect::<Vec<_>>());
        lines.into_iter().find(|fields| {
            fields.first().is_some_and(|own| own == name) || fields.get(2).is_some_and(|own| own == name)
        })
    };
    let number = |name: &str, line: Option<&Vec<String>>| match line {
        Some(fields) => fields.get(2)?.parse().ok(),
        None => name.parse().ok(),
    };
    let account = (!user.is_empty()).then(|| line(passwd, user));
    let uid = match &account {
        Some(account) => Some(number(user, account.as_ref())?),
        None => None,
    };
    let gid = match (group, account.flatten()) {
        ("", Some(account)) => account.get(3).and_then(|group| group.parse().ok()),
        ("", None) => None,
        (group, _) => Some(number(group, line(groups, group).as_ref())?),
    };
    (uid.is_some() || gid.is_some()).then_some(Owner { user: uid, group: gid })
}

/// Makes this process that of `owner`, for good, in all its threads.
pub(crate) fn become_user(owner: Owner) -> Result<()> {
    let (Some(user), Some(group)) = (owner.user, owner.group) else {
        return Err(Error::usage("--user needs a user with a group"));
    };
    let failed = || Error::failed(format!("cannot become user {user}: {}", io::Error::last_os_error()));
    // SAFETY: no pointer but to `group`, which outlives the call. The C library changes all threads.
    if unsafe { libc::setgroups(1, &raw const group) } != 0 {
        return Err(failed());
    }
    // SAFETY: takes a number.
    if unsafe { libc::setgid(group) } != 0 {
        return Err(failed());
    }
    // SAFETY: takes a number.
    if unsafe { libc::setuid(user) } != 0 {
        return Err(failed());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_found() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nreader:x:1001:1002::/:/bin/sh\n";
        let groups = "root:x:0:\nkvm:x:104:reader\n";
        let owner = |user, group| resolve(user, group, passwd, groups).map(|owner| (owner.user, owner.group));
        assert_eq!(owner("reader", ""), Some((Some(1001), Some(1002))));
        assert_eq!(owner("1001", ""), Some((Some(1001), Some(1002))));
        assert_eq!(owner("reader", "kvm"), Some((Some(1001), Some(104))));
        assert_eq!(owner("", "kvm"), Some((None, Some(104))));
        assert_eq!(owner("4242", ""), Some((Some(4242), None)));
        for (user, group) in [("nobody-here", ""), ("reader", "nothing"), ("", ""), ("-1", "")] {
            assert_eq!(owner(user, group), None, "{user}:{group}");
        }
    }
}

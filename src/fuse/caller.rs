//! What the kernel knows of a caller and a request does not say: supplementary groups and capabilities.
//!
//! Read from `/proc/<tid>/status` while the caller waits for us. What cannot be read is not there: a caller of another
//! pid namespace has no groups but its own, and no capability.

use crate::fs::Credentials;

/// capabilities(7): change owners and groups.
const CAP_CHOWN: u64 = 1;
/// capabilities(7): do what otherwise the owner of a file may.
const CAP_FOWNER: u64 = 1 << 3;
/// capabilities(7): keep the setgid bit of what belongs to a group that one is not in.
const CAP_FSETID: u64 = 1 << 4;

/// May the caller leave the setgid bit on a file of this group? The kernel's `in_group_or_capable`.
pub fn may_keep_setgid(tid: u32, credentials: Credentials, gid: u32) -> bool {
    credentials.gid == gid || Standing::of(tid).is_some_and(|standing| standing.keeps_setgid(gid))
}

/// May the caller do with a file what its owner may?
pub fn acts_as_owner(tid: u32) -> bool {
    Standing::of(tid).is_some_and(|standing| standing.capabilities & CAP_FOWNER != 0)
}

/// May the caller give any file to anybody?
pub fn may_give(tid: u32) -> bool {
    Standing::of(tid).is_some_and(|standing| standing.capabilities & CAP_CHOWN != 0)
}

#[derive(Debug, PartialEq, Eq)]
struct Standing {
    groups: Vec<u32>,
    capabilities: u64,
}

impl Standing {
    fn of(tid: u32) -> Option<Standing> {
        if tid == 0 {
            return None;
        }
        let standing = Standing::parse(&std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?)?;
        match is_of_our_user_namespace(tid) {
            true => Some(standing),
            // Capabilities there are over what belongs to that namespace.
            false => Some(Standing { capabilities: 0, ..standing }),
        }
    }

    fn parse(status: &str) -> Option<Standing> {
        let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let groups = value("Groups:")?.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        Some(Standing { groups, capabilities: u64::from_str_radix(value("CapEff:")?, 16).ok()? })
    }

    fn keeps_setgid(&self, gid: u32) -> bool {
        self.groups.contains(&gid) || self.capabilities & CAP_FSETID != 0
    }
}

fn is_of_our_user_namespace(tid: u32) -> bool {
    let namespace = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/user")).ok();
    namespace("self").is_some_and(|ours| namespace(&tid.to_string()) == Some(ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_or_the_capability_keeps_the_bit() {
        let status = "Name:\tsetfacl\nGid:\t5\t5\t5\t5\nGroups:\t100 4294967294 \nCapEff:\t0000000000000000\n";
        let member = Standing::parse(status).unwrap();
        assert!(member.keeps_setgid(100) && member.keeps_setgid(4_294_967_294));
        assert!(!member.keeps_setgid(5), "the request brings that one");
        assert!(!member.keeps_setgid(10));
        let nobody = Standing { groups: vec![], ..member };
        assert!(!nobody.keeps_setgid(0));
        assert!(Standing { capabilities: 1 << 4, ..nobody }.keeps_setgid(0));
        assert!(!Standing { groups: vec![], capabilities: !(1 << 4) }.keeps_setgid(0));
        assert_eq!(Standing::parse("Name:\tcat\n"), None);
    }

    #[test]
    fn who_is_unknown_has_the_group_of_the_request_alone() {
        let credentials = Credentials { uid: 0, gid: 7 };
        assert!(may_keep_setgid(0, credentials, 7));
        assert!(!may_keep_setgid(0, credentials, 8));
        assert!(!may_keep_setgid(u32::MAX, credentials, 8));
        assert!(is_of_our_user_namespace(std::process::id()));
        assert!(!acts_as_owner(0) && !may_give(0));
    }
}

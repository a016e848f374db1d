//! The cipher that ssh uses, where its user leaves the choice to ssh.
//!
//! OpenSSH prefers ChaCha20-Poly1305, which wants clearly more of the processor's time than AES-GCM where there are
//! instructions for AES (`docs/performance.md`). Whoever configured ciphers, or has a policy for them, keeps what is written there.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

/// The option that puts AES-GCM first on the way that `words` lead; they end with the destination.
///
/// `None` where the program is not OpenSSH, where ciphers are configured, or where this processor is slow at AES.
/// All other ciphers stay on the list, so that no server is lost that would have been reached.
pub(super) fn option(words: &[OsString]) -> Option<OsString> {
    let (program, arguments) = words.split_first()?;
    if Path::new(program).file_name()? != "ssh" || !has_aes() {
        return None;
    }
    let configured = ciphers(Command::new(program).arg("-G").args(arguments))?;
    let builtin = ciphers(Command::new(program).args(["-F", "none", "-G", "--", "nowhere"]))?;
    reordered(&configured, &builtin).map(OsString::from)
}

fn reordered(configured: &str, builtin: &str) -> Option<String> {
    if configured != builtin {
        return None;
    }
    let (faster, others): (Vec<&str>, Vec<&str>) = builtin.split(',').partition(|name| name.contains("-gcm@"));
    (!faster.is_empty()).then(|| format!("-oCiphers={}", [faster, others].concat().join(",")))
}

/// What ssh would offer, by its own account.
fn ciphers(asked: &mut Command) -> Option<String> {
    let output = asked.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let said = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    said.lines().find_map(|line| line.strip_prefix("ciphers ")).map(str::to_owned)
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILTIN: &str =
        "chacha20-poly1305@openssh.com,aes128-ctr,aes192-ctr,aes256-ctr,aes128-gcm@openssh.com,aes256-gcm@openssh.com";

    #[test]
    fn aes_gcm_comes_first_and_nothing_is_lost() {
        let expected = "-oCiphers=aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,\
                        aes128-ctr,aes192-ctr,aes256-ctr";
        assert_eq!(reordered(BUILTIN, BUILTIN).as_deref(), Some(expected));
    }

    #[test]
    fn what_somebody_chose_stays() {
        assert_eq!(reordered("aes256-ctr", BUILTIN), None);
        assert_eq!(reordered("aes256-ctr", "aes256-ctr"), None, "no faster one is known");
    }

    #[test]
    fn only_ssh_itself_is_asked() {
        assert_eq!(option(&["/bin/false".into(), "--".into(), "pc1".into()]), None);
        assert_eq!(option(&[]), None);
    }
}

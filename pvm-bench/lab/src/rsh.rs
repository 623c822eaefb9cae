//! The command line of rsh and ssh, as far as PVM, mpirun, GNU parallel and people use it.
//!
//! `[-l user] [-n] [options] [user@]host [options] [--] command...`. Options that only matter on a real network are taken
//! and ignored. The words of the command are joined by spaces and given to the remote shell, as rsh does.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RshCall {
    /// Where.
    pub host: String,
    /// As whom; `None` = as the caller.
    pub user: Option<String>,
    /// With `/dev/null` as stdin.
    pub no_stdin: bool,
    /// The command line for the remote shell; `None` asks for an interactive shell.
    pub command: Option<OsString>,
}

/// Options of ssh that take a value and mean nothing here.
const IGNORED_WITH_VALUE: &[u8] = b"opeiFcmEbBDIJLRSWw";

/// Reads an rsh or ssh command line (without the program's name).
///
/// # Errors
/// In words, if there is no host or an option lacks its value.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<RshCall, String> {
    let mut args = args.into_iter().peekable();
    let mut call = RshCall { host: String::new(), user: None, no_stdin: false, command: None };
    while let Some(arg) = args.peek().cloned() {
        let bytes = arg.as_bytes();
        if bytes == b"--" {
            args.next();
            break;
        }
        if bytes.len() > 1 && bytes.starts_with(b"-") {
            args.next();
            option(&arg, &mut args, &mut call)?;
        } else if call.host.is_empty() {
            args.next();
            let host = arg.to_str().ok_or("the host's name is not text")?;
            match host.split_once('@') {
                Some((user, host)) => {
                    call.user = Some(user.into());
                    call.host = host.into();
                }
                None => call.host = host.into(),
            }
        } else {
            break;
        }
    }
    if call.host.is_empty() {
        // `ssh -- host command`
        call.host = args.next().and_then(|host| host.into_string().ok()).ok_or("usage: rsh [-l user] [-n] host command...")?;
    }
    let words: Vec<OsString> = args.collect();
    if !words.is_empty() {
        call.command = Some(words.join(OsStr::new(" ")));
    }
    Ok(call)
}

/// One option, maybe several letters in one word; its value may be in the same word.
fn option(word: &OsStr, args: &mut impl Iterator<Item = OsString>, call: &mut RshCall) -> Result<(), String> {
    let letters = word.as_bytes().get(1..).unwrap_or_default();
    for (index, letter) in letters.iter().enumerate() {
        match letter {
            b'n' => call.no_stdin = true,
            b'l' => {
                let rest = letters.get(index + 1..).filter(|rest| !rest.is_empty());
                let user = rest.map(|rest| OsString::from_vec(rest.to_vec())).or_else(|| args.next());
                call.user = Some(user.and_then(|user| user.into_string().ok()).ok_or("-l needs a user")?);
                return Ok(());
            }
            letter if IGNORED_WITH_VALUE.contains(letter) => {
                if index + 1 == letters.len() {
                    args.next().ok_or_else(|| format!("-{} needs a value", char::from(*letter)))?;
                }
                return Ok(());
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(words: &[&str]) -> Result<RshCall, String> {
        parse(words.iter().map(OsString::from))
    }

    #[test]
    fn the_callers_we_know() {
        let wanted = RshCall { host: "node2".into(), user: None, no_stdin: true, command: Some("pvmd -s -d0".into()) };
        assert_eq!(call(&["node2", "-n", "pvmd", "-s", "-d0"]).unwrap(), wanted, "PVM");
        assert_eq!(call(&["-n", "node2", "--", "pvmd", "-s -d0"]).unwrap(), wanted, "parallel");
        let as_user = RshCall { user: Some("u".into()), no_stdin: false, ..wanted };
        assert_eq!(call(&["-l", "u", "node2", "pvmd -s -d0"]).unwrap(), as_user);
        assert_eq!(call(&["-lu", "-x", "-o", "A=b", "-oC=d", "node2", "pvmd -s", "-d0"]).unwrap(), as_user, "mpirun");
        assert_eq!(call(&["u@node2", "pvmd", "-s", "-d0"]).unwrap(), as_user);
        assert_eq!(call(&["node2"]).unwrap().command, None);
    }

    #[test]
    fn bad_calls_are_refused() {
        assert!(call(&[]).is_err());
        assert!(call(&["-l"]).is_err());
        assert!(call(&["-o"]).is_err());
    }
}

//! Whether the machine is needed for something else right now, asked of a server or of a command.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;
use url::Url;

/// A server that does not answer within this time has its hands full.
const PATIENCE: Duration = Duration::from_secs(10);
/// More than a status ever has.
const LONGEST_ANSWER: usize = 4 << 20;

/// Keys that say in some server's JSON how much is going on.
///
/// `in_use` is the platform's GPU service, the `queue_…` are ComfyUI, the others common words.
const KEYS: [&str; 6] = ["in_use", "queue_running", "queue_pending", "queue_remaining", "busy", "generating"];

/// Who is asked whether the machine is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A server that answers with JSON.
    Server(Url),
    /// A shell command that succeeds while the machine is needed, and ends with 1 while it is not.
    Command(String),
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Busy {
    /// Something is going on: what.
    Yes(String),
    /// Nothing is.
    No,
    /// It could not be found out: why.
    Unknown(String),
}

/// A text that names nobody to ask.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is neither an address nor a command")]
pub struct ProbeError(String);

impl FromStr for Probe {
    type Err = ProbeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.starts_with("http://") || text.starts_with("https://") {
            return Url::parse(text).map(Self::Server).map_err(|_| ProbeError(text.to_owned()));
        }
        if text.is_empty() { Err(ProbeError(text.to_owned())) } else { Ok(Self::Command(text.to_owned())) }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Probe::Server(url) => write!(f, "{url}"),
            Probe::Command(command) => f.write_str(command),
        }
    }
}

impl Probe {
    /// Asks once.
    ///
    /// A server that refuses the connection is not running, so it does nothing; one that takes longer than
    /// 10 s, or answers 429 or 503, is busy.
    pub async fn ask(&self) -> Busy {
        match self {
            Probe::Server(url) => ask_server(url).await,
            Probe::Command(command) => ask_command(command).await,
        }
    }

    /// Asks every `pause` until the machine is not needed, at most for `limit`; gives the last answer.
    pub async fn wait(&self, limit: Duration, pause: Duration) -> Busy {
        let end = tokio::time::Instant::now() + limit;
        loop {
            let answer = self.ask().await;
            let next = tokio::time::Instant::now() + pause;
            if !matches!(answer, Busy::Yes(_)) || next > end {
                return answer;
            }
            tokio::time::sleep_until(next).await;
        }
    }
}

async fn ask_server(url: &Url) -> Busy {
    let client = match reqwest::Client::builder().timeout(PATIENCE).no_proxy().build() {
        Ok(client) => client,
        Err(error) => return Busy::Unknown(error.to_string()),
    };
    let answer = match client.get(url.clone()).send().await {
        Ok(answer) => answer,
        Err(error) if error.is_timeout() => return Busy::Yes(format!("{url} does not answer")),
        Err(error) if error.is_connect() => return Busy::No,
        Err(error) => return Busy::Unknown(error.to_string()),
    };
    match answer.status().as_u16() {
        429 | 503 => return Busy::Yes(format!("{url} answers {}", answer.status())),
        200..300 => {}
        _ => return Busy::Unknown(format!("{url} answers {}", answer.status())),
    }
    match body(answer).await {
        Ok(bytes) => judge(url, &bytes),
        Err(error) if error.is_timeout() => Busy::Yes(format!("{url} does not answer")),
        Err(error) => Busy::Unknown(error.to_string()),
    }
}

async fn body(mut answer: reqwest::Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > LONGEST_ANSWER {
            break;
        }
    }
    Ok(bytes)
}

fn judge(url: &Url, bytes: &[u8]) -> Busy {
    let Ok(answer) = serde_json::from_slice::<Value>(bytes) else {
        return Busy::Unknown(format!("{url} does not answer with JSON"));
    };
    let mut said = Vec::new();
    collect(&answer, &mut said);
    match said.iter().find(|(_, is_busy)| *is_busy) {
        Some((key, _)) => Busy::Yes(format!("{url} says {key}")),
        None if said.is_empty() => {
            Busy::Unknown(format!("{url} says nothing of {}", KEYS.map(|key| format!("`{key}`")).join(", ")))
        }
        None => Busy::No,
    }
}

/// What every known key says, wherever it stands.
fn collect(value: &Value, into: &mut Vec<(String, bool)>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                if KEYS.contains(&key.as_str()) {
                    into.push((key.clone(), is_something(value)));
                }
                collect(value, into);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, into)),
        _ => {}
    }
}

fn is_something(value: &Value) -> bool {
    match value {
        Value::Bool(is) => *is,
        Value::Number(number) => number.as_f64().is_some_and(|number| number > 0.0),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Null | Value::String(_) => false,
    }
}

async fn ask_command(command: &str) -> Busy {
    let mut shell = tokio::process::Command::new("sh");
    shell.arg("-c").arg(command).kill_on_drop(true);
    shell.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    match tokio::time::timeout(PATIENCE, shell.status()).await {
        Err(_) => Busy::Yes(format!("`{command}` does not end")),
        Ok(Err(error)) => Busy::Unknown(format!("`{command}` cannot be started: {error}")),
        Ok(Ok(status)) => match status.code() {
            Some(0) => Busy::Yes(format!("`{command}` says so")),
            Some(1) => Busy::No,
            _ => Busy::Unknown(format!("`{command}` failed: {status}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_known_servers_are_understood() {
        let url: Url = "http://pc:1/".parse().unwrap();
        let say = |text: &str| judge(&url, text.as_bytes());
        let service = |in_use: u8| {
            format!(r#"{{"status":"ok","vram_coordinator":{{"backends":[{{"models":[{{"in_use":{in_use}}}]}}]}}}}"#)
        };
        assert_eq!(say(&service(0)), Busy::No);
        assert_eq!(say(&service(1)), Busy::Yes("http://pc:1/ says in_use".to_owned()));
        assert_eq!(say(r#"{"queue_running":[],"queue_pending":[]}"#), Busy::No);
        assert!(matches!(say(r#"{"queue_running":[[1]],"queue_pending":[]}"#), Busy::Yes(_)));
        assert!(matches!(say(r#"{"exec_info":{"queue_remaining":2}}"#), Busy::Yes(_)));
        assert!(matches!(say(r#"{"status":"ok"}"#), Busy::Unknown(_)));
        assert!(matches!(say("<html>"), Busy::Unknown(_)));
    }

    #[test]
    fn an_address_is_a_server_and_everything_else_a_command() {
        assert!(matches!("http://127.0.0.1:17803/api/health".parse(), Ok(Probe::Server(_))));
        assert!(matches!("pgrep -x blender".parse(), Ok(Probe::Command(_))));
        assert!(" ".parse::<Probe>().is_err() && "http://".parse::<Probe>().is_err());
    }
}

//! Chat formats: what a language model is told so that it answers, and what its answer says.
//!
//! What a user writes is never read as a part of the format: a message may hold `<|im_end|>` or `<think>`, and reaches
//! the model as these letters.
//!
//! References: the chat template of Qwen3 (Apache-2.0); the prompt format in the model card of Llama Guard 3.

use crate::text::{TextError, Tokenizer};

/// How a model is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Qwen3, thinking before it answers.
    Qwen3Thinking,
    /// Qwen3 with an empty block of thoughts: it answers at once.
    Qwen3,
    /// Llama 3 without a system message.
    Llama3,
    /// Llama Guard 3 (1B), asked whether a user's message is safe by its thirteen categories.
    LlamaGuard3,
}

/// The categories of Llama Guard 3 1B, S1 to S13.
const CATEGORIES: [&str; 13] = [
    "Violent Crimes",
    "Non-Violent Crimes",
    "Sex Crimes",
    "Child Exploitation",
    "Defamation",
    "Specialized Advice",
    "Privacy",
    "Intellectual Property",
    "Indiscriminate Weapons",
    "Hate",
    "Self-Harm",
    "Sexual Content",
    "Elections",
];

/// A piece of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Token(&'static str),
    Text(String),
}

impl Format {
    /// The numbers of a prompt with one user's message, up to where the model's answer begins.
    ///
    /// # Errors
    /// When the tokenizer lacks a token of the format: it belongs to another model.
    pub fn prompt(self, message: &str, tokenizer: &Tokenizer) -> Result<Vec<u32>, TextError> {
        let mut ids = Vec::new();
        for piece in self.pieces(message) {
            match piece {
                Piece::Text(text) => ids.extend(tokenizer.encode_foreign(&text)?),
                Piece::Token(token) => {
                    let lacking = || TextError::Malformed { what: format!("token {token}") };
                    ids.push(tokenizer.id(token).ok_or_else(lacking)?);
                }
            }
        }
        Ok(ids)
    }

    fn pieces(self, message: &str) -> Vec<Piece> {
        match self {
            Self::Qwen3Thinking => chat_ml(message),
            Self::Qwen3 => {
                let thoughts = [Piece::Token("<think>"), text("\n\n"), Piece::Token("</think>"), text("\n\n")];
                chat_ml(message).into_iter().chain(thoughts).collect()
            }
            Self::Llama3 => llama_3(message.trim()),
            Self::LlamaGuard3 => llama_3(&task(message)),
        }
    }
}

fn text(text: impl Into<String>) -> Piece {
    Piece::Text(text.into())
}

fn chat_ml(message: &str) -> Vec<Piece> {
    vec![
        Piece::Token("<|im_start|>"),
        text(format!("user\n{message}")),
        Piece::Token("<|im_end|>"),
        text("\n"),
        Piece::Token("<|im_start|>"),
        text("assistant\n"),
    ]
}

fn llama_3(message: &str) -> Vec<Piece> {
    vec![
        Piece::Token("<|begin_of_text|>"),
        Piece::Token("<|start_header_id|>"),
        text("user"),
        Piece::Token("<|end_header_id|>"),
        text(format!("\n\n{message}")),
        Piece::Token("<|eot_id|>"),
        Piece::Token("<|start_header_id|>"),
        text("assistant"),
        Piece::Token("<|end_header_id|>"),
        text("\n\n"),
    ]
}

/// What Llama Guard is asked.
fn task(message: &str) -> String {
    let categories = (1..).zip(CATEGORIES).map(|(number, name)| format!("S{number}: {name}.\n"));
    format!(
        "Task: Check if there is unsafe content in 'User' messages in conversations according our safety policy with \
         the below categories.\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\n{}<END UNSAFE CONTENT CATEGORIES>\n\n\
         <BEGIN CONVERSATION>\n\nUser: {message}\n\n<END CONVERSATION>\n\n\
         Provide your safety assessment for ONLY THE LAST User message in the above conversation:\n \
         - First line must read 'safe' or 'unsafe'.\n \
         - If unsafe, a second line must include a comma-separated list of violated categories.",
        categories.collect::<String>()
    )
}

/// What a model wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The token numbers, without the one that ends the text.
    pub ids: Vec<u32>,
    /// Whether the model ended the text itself; otherwise the limit did.
    pub finished: bool,
    /// What stands in a block of thoughts, open or closed.
    pub thoughts: Option<String>,
    /// What stands outside of it. None where the block was not closed: then there is no answer, whatever the thoughts
    /// say.
    pub answer: Option<String>,
}

impl Reply {
    /// Divides what a model wrote at the token that ends its thoughts.
    pub fn new(ids: Vec<u32>, finished: bool, tokenizer: &Tokenizer) -> Result<Self, TextError> {
        let place = |token: &str| tokenizer.id(token).and_then(|id| ids.iter().rposition(|&found| found == id));
        let (opened, closed) = (place("<think>"), place("</think>"));
        let words = |ids: &[u32]| Ok::<_, TextError>(tokenizer.decode(ids)?.trim().to_owned());
        let (thoughts, answer) = match (opened, closed) {
            (None, None) => (None, Some(words(&ids)?)),
            (Some(opened), None) => (Some(words(&ids[opened + 1..])?), None),
            (Some(opened), Some(closed)) if opened > closed => (Some(words(&ids[opened + 1..])?), None),
            (opened, Some(closed)) => {
                let first = opened.map_or(0, |opened| opened + 1);
                (Some(words(&ids[first..closed])?), Some(words(&ids[closed + 1..])?))
            }
        };
        Ok(Self { ids, finished, thoughts, answer })
    }
}

/// What Llama Guard says of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It breaks no rule.
    Safe,
    /// It breaks these, such as `S9`.
    Unsafe(Vec<String>),
}

impl Verdict {
    /// Reads an answer whose first line is exactly `safe` or `unsafe`; anything else is no verdict, not a safe one.
    pub fn read(answer: &str) -> Option<Self> {
        let mut lines = answer.trim().lines().map(str::trim);
        match lines.next()? {
            "safe" => Some(Self::Safe),
            "unsafe" => {
                let listed = lines.next().unwrap_or_default().split(',');
                Some(Self::Unsafe(listed.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()))
            }
            _ => None,
        }
    }
}

//! A language model made by hand, in GGUF: it goes on from each token as it is told, and notices words of its prompt.
//!
//! One layer whose attention is the same everywhere: it adds to every place how often each noticed word stood before.

use std::collections::BTreeMap;

/// What the model does.
#[derive(Clone)]
pub(crate) struct Mind {
    /// `llama` or `qwen3`.
    pub(crate) architecture: &'static str,
    /// Control tokens of the chat format.
    pub(crate) control: &'static [&'static str],
    /// The control token that ends an answer.
    pub(crate) end: &'static str,
    /// Which token follows which, and how surely.
    pub(crate) next: Vec<(&'static str, &'static str, f32)>,
    /// Where the token on the left stood before, a new line is followed by the token on the right.
    pub(crate) noticed: Vec<(&'static str, &'static str)>,
}

/// A tensor's name, shape and numbers.
pub(crate) type Tensor = (&'static str, Vec<usize>, Vec<f32>);

/// Counting, as every language model knows it.
pub(crate) const COUNTING: [&str; 12] =
    ["one", "Ġtwo", "Ġthree", "Ġfour", "Ġfive", "Ġsix", "Ġseven", "Ġeight", "Ġnine", "Ġten", "Ġeleven", "Ġtwelve"];

/// How much a noticed word adds, at most and where it is one of a thousand.
const NOTICE: f32 = 500.0;

impl Mind {
    /// One that can count.
    pub(crate) fn counting(architecture: &'static str, control: &'static [&'static str], end: &'static str) -> Self {
        let next = COUNTING.windows(2).map(|pair| (pair[0], pair[1], 1.0)).collect();
        Self { architecture, control, end, next, noticed: Vec::new() }
    }

    /// The same that answers a new line with `first`, and where a word was noticed with another answer.
    pub(crate) fn answering(mut self, first: &'static str, noticed: &[(&'static str, &'static str)]) -> Self {
        self.next.push(("Ċ", first, 1.0));
        self.next.push((first, self.end, 20.0));
        for (word, answer) in noticed {
            self.next.extend([("Ċ", *answer, 0.5), (*answer, self.end, 20.0)]);
            self.noticed.push((word, answer));
        }
        self
    }

    /// The file.
    pub(crate) fn gguf(&self) -> Vec<u8> {
        let (metadata, tensors) = self.parts();
        let list: Vec<Stored<'_>> = tensors
            .iter()
            .map(|(name, shape, numbers)| Stored { name, shape, kind: F32, bytes: bytes_of(numbers) })
            .collect();
        written(&metadata, &list)
    }

    /// The metadata, and names, shapes (fastest first) and numbers of the tensors.
    pub(crate) fn parts(&self) -> (BTreeMap<String, Vec<u8>>, Vec<Tensor>) {
        let (tokens, merges) = self.vocabulary();
        let width = (tokens.len() + self.noticed.len()).next_multiple_of(32);
        let place = |token: &str| tokens.iter().position(|known| known == token).unwrap();
        let mut table = vec![0.0; tokens.len() * width];
        (0..tokens.len()).for_each(|i| table[i * width + i] = 1.0);
        // So little that what is noticed stays all that is told.
        let whisper = || noise(width * width).into_iter().map(|number| number * 1e-3).collect::<Vec<f32>>();
        let (mut out, mut values, mut moved) = (vec![0.0; tokens.len() * width], whisper(), whisper());
        for (from, to, surely) in &self.next {
            out[place(to) * width + place(from)] += surely;
        }
        for (i, (word, answer)) in self.noticed.iter().enumerate() {
            let (word, feature) = (place(word), tokens.len() + i);
            values[word * width + word] = 1.0;
            moved[feature * width + word] = NOTICE;
            out[place(answer) * width + feature] = 0.1;
        }
        let mut tensors = vec![
            ("token_embd.weight", vec![width, tokens.len()], table),
            ("output.weight", vec![width, tokens.len()], out),
            ("output_norm.weight", vec![width], vec![1.0; width]),
            ("blk.0.attn_norm.weight", vec![width], vec![1.0; width]),
            ("blk.0.ffn_norm.weight", vec![width], vec![1.0; width]),
            ("blk.0.attn_q.weight", vec![width, width], noise(width * width)),
            ("blk.0.attn_k.weight", vec![width, width], noise(width * width)),
            ("blk.0.attn_v.weight", vec![width, width], values),
            ("blk.0.attn_output.weight", vec![width, width], moved),
            ("blk.0.ffn_gate.weight", vec![width, 32], noise(width * 32)),
            ("blk.0.ffn_up.weight", vec![width, 32], noise(width * 32)),
            ("blk.0.ffn_down.weight", vec![32, width], noise(width * 32)),
        ];
        if self.architecture == "qwen3" {
            for name in ["blk.0.attn_q_norm.weight", "blk.0.attn_k_norm.weight"] {
                // Little, so that attention stays the same everywhere: what is normed here is noise.
                tensors.push((name, vec![width], vec![1e-3; width]));
            }
        }
        (self.metadata(width, &tokens, &merges), tensors)
    }

    /// Bytes of ASCII, then the words with what leads to them, then control tokens; and the pairs that are merged.
    fn vocabulary(&self) -> (Vec<String>, Vec<String>) {
        // What larder asks is ASCII: other bytes would only make the model slower.
        let mut tokens: Vec<String> = byte_letters().take(128).map(String::from).collect();
        let mut merges = Vec::new();
        let words = self.next.iter().flat_map(|(from, to, _)| [*from, *to]);
        let words = words.chain(self.noticed.iter().map(|(word, _)| *word));
        for word in words.filter(|word| !self.control.contains(word)) {
            let letters: Vec<char> = word.chars().collect();
            for i in 1..letters.len() {
                let whole: String = letters[..=i].iter().collect();
                if !tokens.contains(&whole) {
                    merges.push(format!("{} {}", letters[..i].iter().collect::<String>(), letters[i]));
                    tokens.push(whole);
                }
            }
        }
        tokens.extend(self.control.iter().map(|token| (*token).to_owned()));
        (tokens, merges)
    }

    fn metadata(&self, width: usize, tokens: &[String], merges: &[String]) -> BTreeMap<String, Vec<u8>> {
        let arch = self.architecture;
        let own = |key: &str| format!("{arch}.{key}");
        let end = tokens.iter().position(|token| token == self.end).unwrap() as u32;
        let kinds = tokens.iter().map(|token| if self.control.contains(&token.as_str()) { 3_i32 } else { 1 });
        let kinds: Vec<u8> = kinds.flat_map(i32::to_le_bytes).collect();
        let list = |kind: u32, count: usize, items: Vec<u8>| {
            [&9_u32.to_le_bytes()[..], &kind.to_le_bytes(), &(count as u64).to_le_bytes(), &items].concat()
        };
        let texts = |texts: &[String]| list(8, texts.len(), texts.iter().flat_map(|item| text(item)).collect());
        let pre = if arch == "llama" { "llama-bpe" } else { "qwen2" };
        BTreeMap::from([
            ("general.architecture".to_owned(), value(arch)),
            (own("block_count"), number(1)),
            (own("embedding_length"), number(width as u32)),
            (own("attention.head_count"), number(1)),
            (own("attention.head_count_kv"), number(1)),
            (own("attention.key_length"), number(width as u32)),
            (own("attention.value_length"), number(width as u32)),
            (own("rope.dimension_count"), number(width as u32)),
            (own("feed_forward_length"), number(32)),
            (own("context_length"), number(8192)),
            (own("attention.layer_norm_rms_epsilon"), [&6_u32.to_le_bytes()[..], &1e-6_f32.to_le_bytes()].concat()),
            ("tokenizer.ggml.model".to_owned(), value("gpt2")),
            ("tokenizer.ggml.pre".to_owned(), value(pre)),
            ("tokenizer.ggml.tokens".to_owned(), texts(tokens)),
            ("tokenizer.ggml.merges".to_owned(), texts(merges)),
            ("tokenizer.ggml.token_type".to_owned(), list(5, tokens.len(), kinds)),
            ("tokenizer.ggml.eos_token_id".to_owned(), number(end)),
        ])
    }
}

/// The letters that stand for the 256 bytes.
fn byte_letters() -> impl Iterator<Item = char> {
    let mut beyond = 256_u32;
    (0..=255_u8).map(move |byte| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => {
            beyond += 1;
            char::from_u32(beyond - 1).unwrap()
        }
    })
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn value(of: &str) -> Vec<u8> {
    [&8_u32.to_le_bytes()[..], &text(of)].concat()
}

fn number(number: u32) -> Vec<u8> {
    [4_u32.to_le_bytes(), number.to_le_bytes()].concat()
}

/// Numbers that do next to nothing; but no matrix of a trained model is all zeros.
fn noise(count: usize) -> Vec<f32> {
    let mut state = 7_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 16) as f32 / 65_536.0 - 0.5) * 1e-3
    };
    (0..count).map(next).collect()
}

/// The bytes of numbers in single precision.
pub(crate) fn bytes_of(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// The code of single precision.
pub(crate) const F32: u32 = 0;

/// A tensor of the file, its sizes fastest first.
pub(crate) struct Stored<'a> {
    pub(crate) name: &'a str,
    pub(crate) shape: &'a [usize],
    /// The code of its number format.
    pub(crate) kind: u32,
    pub(crate) bytes: Vec<u8>,
}

/// A file of these tensors.
pub(crate) fn written(metadata: &BTreeMap<String, Vec<u8>>, tensors: &[Stored<'_>]) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        file.extend([text(key), value.clone()].concat());
    }
    let mut offset = 0_u64;
    for tensor in tensors {
        file.extend(text(tensor.name));
        file.extend((tensor.shape.len() as u32).to_le_bytes());
        file.extend(tensor.shape.iter().flat_map(|size| (*size as u64).to_le_bytes()));
        file.extend(tensor.kind.to_le_bytes());
        file.extend(offset.to_le_bytes());
        offset = (offset + tensor.bytes.len() as u64).next_multiple_of(32);
    }
    for tensor in tensors {
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(&tensor.bytes);
    }
    file
}

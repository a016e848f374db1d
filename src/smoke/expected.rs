//! What the tensors of known architectures are called, and their shapes.
//!
//! `expected/README.md` says where the lists come from.

/// One list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct List {
    /// Its name: that of its file.
    pub(super) name: &'static str,
    /// What it describes, for people.
    pub(super) title: &'static str,
    text: &'static str,
    /// Beginnings of names that a file may leave out.
    optional: &'static [&'static str],
}

macro_rules! lists {
    ($($name:literal $title:literal $optional:expr;)*) => {
        const LISTS: &[List] = &[$(List {
            name: $name,
            title: $title,
            text: include_str!(concat!("expected/", $name, ".txt")),
            optional: &$optional,
        }),*];
    };
}

lists! {
    "bigvgan_v2_44k_128b_512x" "BigVGAN v2, 44 kHz" [];
    "clip_g_proj" "CLIP ViT-bigG text encoder" [];
    "clip_l_proj" "CLIP ViT-L text encoder" ["text_projection."];
    "clip_vit_l14" "CLIP ViT-L/14" [];
    "dcae_ace_step_v1" "ACE-Step v1 autoencoder" [];
    "dfn5b_vit_h14_378" "DFN5B CLIP ViT-H/14" [];
    "flux2_dev" "FLUX.2 transformer" [];
    "flux2_dev.single" "FLUX.2 transformer, one file" [];
    "flux2_vae" "FLUX.2 autoencoder" [];
    "flux2_vae.single" "FLUX.2 autoencoder, one file" [];
    "ltxv_13b_097" "LTX-Video 13B transformer" [];
    "ltxv_13b_097.single" "LTX-Video 13B transformer, one file" [];
    "ltxv_vae_097" "LTX-Video autoencoder" [];
    // FLUX.2 reads the states after layer 30 and needs nothing behind it.
    "mistral_small_24b_text" "Mistral Small 24B" [
        "lm_head.", "model.norm.", "model.layers.30.", "model.layers.31.", "model.layers.32.", "model.layers.33.",
        "model.layers.34.", "model.layers.35.", "model.layers.36.", "model.layers.37.", "model.layers.38.",
        "model.layers.39."
    ];
    "mmaudio_vae_v1_44" "MMAudio autoencoder, 44 kHz" [];
    "oobleck" "Oobleck autoencoder" [];
    "qwen25_vl_7b" "Qwen2.5-VL 7B" ["lm_head."];
    "qwen25_vl_7b.older" "Qwen2.5-VL 7B, older names" ["lm_head."];
    "qwen3_4b" "Qwen3 4B" ["lm_head."];
    "qwen_image" "Qwen-Image transformer" [];
    "qwen_image_vae" "Qwen-Image autoencoder" [];
    "sd35_large_transformer" "SD 3.5 Large transformer" [];
    "sd35_large_transformer.single" "SD 3.5 Large transformer, one file" [];
    "sd35_vae" "SD 3.5 autoencoder" [];
    "sd35_vae.single" "SD 3.5 autoencoder, one file" [];
    "stable_audio_dit" "Stable Audio Open transformer" ["time_proj."];
    "t5_base_encoder" "T5 base encoder" ["encoder.embed_tokens."];
    "t5_xxl_encoder" "T5 1.1 XXL encoder" ["encoder.embed_tokens."];
    "umt5_xxl_encoder" "UMT5 XXL encoder" ["encoder.embed_tokens."];
    "wan21_vae" "Wan 2.1 autoencoder" [];
    "wan22_i2v_14b" "Wan 2.2 I2V 14B transformer" [];
    "wan22_i2v_14b.single" "Wan 2.2 I2V 14B transformer, one file" [];
    "wan22_ti2v_5b" "Wan 2.2 TI2V 5B transformer" [];
    "wan22_ti2v_5b.single" "Wan 2.2 TI2V 5B transformer, one file" [];
    "wan22_vae" "Wan 2.2 autoencoder" [];
}

/// The lists that an artifact's files may be compared with, by the manifest's key `smoke`.
const BY_SMOKE: &[(&str, &[&str])] = &[
    ("ace-step", &["dcae_ace_step_v1"]),
    ("bigvgan", &["bigvgan_v2_44k_128b_512x"]),
    ("clip", &["clip_vit_l14"]),
    ("clip-text", &["clip_l_proj", "clip_g_proj"]),
    ("dfn5b-clip", &["dfn5b_vit_h14_378"]),
    ("flux2", &["flux2_dev.single", "flux2_dev"]),
    ("flux2-text", &["mistral_small_24b_text"]),
    ("flux2-vae", &["flux2_vae.single", "flux2_vae"]),
    ("ltx-vae", &["ltxv_vae_097"]),
    ("ltx-video", &["ltxv_13b_097.single", "ltxv_13b_097", "ltxv_vae_097"]),
    ("mmaudio", &["mmaudio_vae_v1_44"]),
    ("qwen-image", &["qwen_image", "qwen_image_vae", "qwen25_vl_7b", "qwen25_vl_7b.older"]),
    ("qwen-image-edit", &["qwen_image", "qwen_image_vae", "qwen25_vl_7b", "qwen25_vl_7b.older"]),
    ("qwen-image-vae", &["qwen_image_vae"]),
    ("qwen2.5-vl-text", &["qwen25_vl_7b.older", "qwen25_vl_7b"]),
    ("qwen3-text", &["qwen3_4b"]),
    ("stable-audio", &["stable_audio_dit", "oobleck", "t5_base_encoder"]),
    (
        "stable-diffusion-3",
        &[
            "sd35_large_transformer",
            "sd35_large_transformer.single",
            "sd35_vae",
            "sd35_vae.single",
            "clip_l_proj",
            "clip_g_proj",
            "t5_xxl_encoder",
        ],
    ),
    ("t5-encoder", &["t5_xxl_encoder", "t5_base_encoder"]),
    ("umt5-encoder", &["umt5_xxl_encoder"]),
    ("wan2.1-vae", &["wan21_vae"]),
    ("wan2.2-i2v", &["wan22_i2v_14b.single", "wan22_i2v_14b", "umt5_xxl_encoder", "wan21_vae"]),
    ("wan2.2-ti2v", &["wan22_ti2v_5b.single", "wan22_ti2v_5b", "umt5_xxl_encoder", "wan22_vae"]),
    ("wan2.2-vae", &["wan22_vae"]),
];

/// The lists for a smoke test; none for one that larder has no list for.
pub(super) fn candidates(smoke: Option<&str>) -> Vec<List> {
    let names = BY_SMOKE.iter().find(|(known, _)| Some(*known) == smoke).map_or(&[][..], |(_, names)| names);
    LISTS.iter().filter(|list| names.contains(&list.name)).copied().collect()
}

/// One tensor that must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) shape: Vec<u64>,
}

impl List {
    /// All tensors of the list.
    pub(super) fn tensors(&self) -> Vec<Wanted> {
        self.text.lines().flat_map(tensors_of_line).collect()
    }

    /// Whether a file may leave this one out.
    pub(super) fn is_optional(&self, name: &str) -> bool {
        self.optional.iter().any(|beginning| name.starts_with(beginning))
    }
}

/// `blocks.{0-2}.weight 4 4` is three tensors.
fn tensors_of_line(line: &str) -> Vec<Wanted> {
    let mut words = line.split(' ');
    let pattern = words.next().unwrap_or_default();
    let shape: Vec<u64> = words.filter_map(|side| side.parse().ok()).collect();
    expand(pattern).into_iter().map(|name| Wanted { name, shape: shape.clone() }).collect()
}

fn expand(pattern: &str) -> Vec<String> {
    let Some((before, rest)) = pattern.split_once('{') else { return vec![pattern.to_owned()] };
    let Some((numbers, after)) = rest.split_once('}') else { return vec![pattern.to_owned()] };
    let number = |text: &str| text.parse::<u64>().unwrap_or_default();
    let ranges = numbers.split(',').flat_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        number(first)..=number(last)
    });
    let rest = expand(after);
    ranges.flat_map(|number| rest.iter().map(move |rest| format!("{before}{number}{rest}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stands_for_all_its_numbers() {
        let names: Vec<String> = tensors_of_line("a.{0-1,5}.b.{2-3}.c 4 8").into_iter().map(|t| t.name).collect();
        assert_eq!(names, ["a.0.b.2.c", "a.0.b.3.c", "a.1.b.2.c", "a.1.b.3.c", "a.5.b.2.c", "a.5.b.3.c"]);
        assert_eq!(tensors_of_line("scale"), [Wanted { name: "scale".to_owned(), shape: Vec::new() }]);
    }

    #[test]
    fn the_lists_have_as_many_numbers_as_the_models() {
        let count = |name: &str| {
            let list = LISTS.iter().find(|list| list.name == name).unwrap().tensors();
            (list.len(), list.iter().map(|tensor| tensor.shape.iter().product::<u64>()).sum::<u64>())
        };
        // The two real shards have 16,292,705,296 bytes: two for each of these numbers, and two headers.
        assert_eq!(count("sd35_large_transformer"), (1227, 8_146_280_768));
        assert_eq!(count("flux2_dev").0, 331);
        assert_eq!(count("flux2_dev").1, count("flux2_dev.single").1);
        assert_eq!(count("sd35_large_transformer").1, count("sd35_large_transformer.single").1);
        assert_eq!(count("wan22_i2v_14b"), count("wan22_i2v_14b.single"));
    }

    #[test]
    fn every_smoke_test_names_lists_that_exist() {
        for (smoke, names) in BY_SMOKE {
            assert_eq!(candidates(Some(smoke)).len(), names.len(), "{smoke}");
        }
    }
}

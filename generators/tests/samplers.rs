//! Schedules and steps against diffusers.

#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

mod support;

use std::collections::BTreeMap;

use larder_generators::samplers::flow_match_euler::{Config, FlowMatchEuler};
use larder_generators::samplers::{ScheduleError, cosine_dpm};
use serde::Deserialize;
use support::{Golden, assert_parity};

#[derive(Deserialize)]
struct Case {
    config: Config,
    steps: usize,
    mu: Option<f64>,
}

#[test]
fn flow_match_euler_follows_diffusers() {
    let golden = Golden::open("flow_match_euler");
    for (name, case) in golden.config::<BTreeMap<String, Case>>() {
        let schedule = FlowMatchEuler::new(&case.config, case.steps, case.mu).unwrap();
        let expected = golden.tensor(&format!("{name}.sigmas")).to_vec1::<f32>().unwrap();
        assert_eq!(schedule.sigmas().len(), expected.len(), "{name}");
        for (found, expected) in schedule.sigmas().iter().zip(&expected) {
            assert!((found - expected).abs() <= 2e-7, "{name}: {found} instead of {expected}");
        }
        let mut sample = golden.tensor(&format!("{name}.start"));
        for i in 0..schedule.steps() {
            let velocity = (sample.cos().unwrap() * 1.5).unwrap();
            sample = schedule.step(i, &velocity, &sample).unwrap();
        }
        assert_parity(&name, &sample, &golden.tensor(&format!("out.{name}")));
        let first = golden.tensor(&format!("{name}.timesteps")).to_vec1::<f32>().unwrap()[0];
        assert!((schedule.timestep(0) - first).abs() <= 1e-3, "{name}");
    }
}

#[derive(Deserialize)]
struct DpmCase {
    config: cosine_dpm::Config,
    steps: usize,
}

#[test]
fn cosine_dpm_follows_diffusers() {
    let golden = Golden::open("cosine_dpm");
    for (name, case) in golden.config::<BTreeMap<String, DpmCase>>() {
        let recorded = |what: &str| golden.tensor(&format!("{name}.{what}"));
        let mut schedule = cosine_dpm::CosineDpm::new(&case.config, case.steps).unwrap();
        let expected = recorded("sigmas").to_vec1::<f32>().unwrap();
        assert_eq!(schedule.sigmas().len(), expected.len(), "{name}");
        for (found, expected) in schedule.sigmas().iter().zip(&expected) {
            assert!((found - f64::from(*expected)).abs() <= 1e-6 * found.max(1.0), "{name}: {found} not {expected}");
        }
        let mut sample = (recorded("start") * schedule.initial_scale()).unwrap();
        for i in 0..schedule.steps() {
            let told = recorded("timesteps").to_vec1::<f32>().unwrap()[i];
            assert!((schedule.timestep(i) - told).abs() <= 1e-6, "{name}");
            let answer = (schedule.input(i, &sample).unwrap().cos().unwrap() * 1.5).unwrap();
            sample = schedule.step(i, &answer, &sample, &recorded("noise").get(i).unwrap()).unwrap();
            assert_parity(&format!("{name} {i}"), &sample, &recorded("out").get(i).unwrap());
        }
    }
}

#[test]
fn schedules_that_cannot_be_made_are_refused() {
    let config = |text: &str| serde_json::from_str::<Config>(text).unwrap();
    let refused = |text: &str, steps| FlowMatchEuler::new(&config(text), steps, None).unwrap_err();
    assert_eq!(refused("{}", 0), ScheduleError::NoSteps);
    assert_eq!(refused(r#"{"use_dynamic_shifting":true}"#, 4), ScheduleError::NoShift);
    let option = "use_karras_sigmas";
    assert_eq!(refused(r#"{"use_karras_sigmas":true}"#, 4), ScheduleError::Unsupported { option });
}

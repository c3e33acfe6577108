//! `slicectl`.

fn main() -> std::process::ExitCode {
    slicectl::main("slicectl")
}

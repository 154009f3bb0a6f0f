import Testing
import Vocabulary

@Suite struct PrintableTests {
    @Test(
        "Names from outside show what they are, and turn no line around",
        arguments: [
            ("gpt-5.4 mini", "gpt-5.4 mini"), ("modèle 模型 🦊", "modèle 模型 🦊"), ("a\nb\u{1B}[31m", "a\\u000ab\\u001b[31m"),
            ("a\u{2028}b\u{2029}", "a\\u2028b\\u2029"), ("\u{202E}evil\u{2066}", "\\u202eevil\\u2066"), ("\u{85}\u{9B}", "\\u0085\\u009b"),
            ("a\u{200B}\u{FEFF}", "a\\u200b\\ufeff"), ("\u{E0041}", "\\udb40\\udc41"),
        ])
    func escapes(_ text: String, _ shown: String) { #expect(text.printable == shown) }
}

import Bytes
import Testing

@Suite struct SipHashTests {
    /// `vectors_sip64` of the authors' reference implementation (github.com/veorq/SipHash): key 00 … 0f, messages 00, 00 01 … of 8 to 15 bytes,
    /// as little-endian words. The first 8 bytes of each are the word.
    @Test(
        "The authors' vectors",
        arguments: [
            (8, 0x93f5_f579_9a93_2462), (9, 0x9e00_82df_0ba9_e4b0), (10, 0x7a5d_bbc5_94dd_b9f3), (11, 0xf4b3_2f46_226b_ada7),
            (12, 0x751e_8fbc_860e_e5fb), (13, 0x14ea_5627_c084_3d90), (14, 0xf723_ca90_8e7a_f2ee), (15, 0xa129_ca61_49be_45e5),
        ] as [(Int, UInt64)])
    func vectors(_ count: Int, _ expected: UInt64) {
        let hash = SipHash(key: (0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908))
        let rest = (8..<count).map { UInt8($0) }
        #expect(hash.hash(0x0706_0504_0302_0100, rest.span.bytes) == expected)
    }
}

"""Songs made from random numbers: a composer, a singer and a band.

A model that plays along must see pairs: singing, and the accompaniment that fits it. This package
makes such pairs, with numpy and a short-time Fourier transform. It shows how little a song is:

- A song is a score. Tempo and metre, form and chords are written there, and so is the melody.
- A score is notes. A note is a beat, a length, a pitch and a loudness. A chord is three or four
  pitch classes. A drum pattern is a row of signs, one per sixteenth.
- A voice is a few numbers: how low and high it reaches, how dark, how breathy, how late it is. Each
  draw of these numbers is another singer. A band is drawn in the same way.

The singers sound like machines, and the band like a toy. That is enough, because a model of pairs
learns what the two have in common, and only that has to be true. Here this common part is beat and
bar, key and chord, form: what a band needs to know of a singer. The score holds all of it; nothing
else is shared. The noise, the room, the timing and the tuning of the two recordings are drawn
apart, so a model cannot find the band in a trace that it left on the vocals.

The modules, in reading order:

    score.py      what a score is, and the styles: patterns for drums, bass and chords
    compose.py    random numbers -> Score: chords, motifs, melodies, form
    lead_sheet.py a file of melodies and chords -> Score; may be skipped at first
    singer.py     Score -> vocals: curves of pitch and loudness, then source and filter
    band.py       Score -> accompaniment: patterns become events, events become sound
    sound.py      what both use: levels, and a room
    song.py       seed and number -> a song; many songs on several cores

Singer and band depend on nothing but the Score. It does not matter to them who wrote it.
"""

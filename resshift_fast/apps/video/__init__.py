"""Videos, restored frame by frame, with their sound; needs PyAV: `pip install 'resshift-fast[video]'`.

`restoring.restore` is the whole way. `clips` opens videos and decodes their frames, `colours` converts frames to photos
and back, `work` keeps on disk what is restored, so that a run goes on where another was interrupted, `encoding`
compresses it in segments, and `joining` puts these, the sound and the subtitles into one file.
"""

"""What a run looks like: pictures of regions, masks and reconstructions, and one page that tells the whole of it."""

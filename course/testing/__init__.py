"""Props that tests share: copies of the tree, tiny trees, local stages."""

"""How a model lies on several devices: meshes from flags, and rules from the roles of axes to the axes of a mesh."""

"""Virtual hospitals: synthetic people, scanned on synthetic scanners, as real NIfTI files in BIDS trees.

    spec       what to make (`PhantomSpec`), validated
    generate   `write_bids` and `open_phantom`: the two entry points
    founder    the anatomy people descend from: the MNI152 template, or a folder of label maps
    person     who somebody is: sex, ages, disease, pose, own deformation
    ageing     how volumes change with age and disease, calibrated to published rates
    deform     stationary velocity fields, scaling and squaring
    anatomy    a person's tissue maps at each visit
    disease    hypometabolism and white-matter lesions
    scanner    contrast, bias field, blur, noise and gain of each site

Nothing here is a person. Every file, table and figure made from it says "synthetic".
"""
